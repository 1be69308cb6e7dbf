-- InsightFold folds the next page of the log.
-- name: InsightFold :one
select f.leads::boolean as leads, f.steps::bigint as steps
from pawl.insight_fold(@leader::text, @term::bigint, @row_limit::integer, @lease::interval) f;
