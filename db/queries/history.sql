-- name: ListHistory :many
select h.*
from pawl.history_page(@tenant_id::text, @instance_id::uuid, @after_version::bigint, @row_limit::integer, @bytes::bigint) h
order by h.version;
