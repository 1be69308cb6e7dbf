-- name: ListHistory :many
select h.*
from pawl.history h
where h.tenant_id = @tenant_id and h.instance_id = @instance_id and h.version > @after_version
order by h.version
limit @row_limit;
