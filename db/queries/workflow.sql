-- name: RegisterWorkflow :one
select r.version::integer as version, r.created::boolean as created
from pawl.register_workflow(@definition::jsonb, @actor::text, sqlc.narg('version')::integer) r;

-- name: JSONPathErrors :many
select p.path::text as path, coalesce(pawl.jsonpath_error(p.path), '')::text as error
from unnest(@paths::text[]) as p (path);

-- name: GetWorkflow :one
select * from pawl.workflow where name = @name order by version desc limit 1;

-- name: GetWorkflowVersion :one
select * from pawl.workflow where name = @name and version = @version;

-- name: ListWorkflows :many
select w.* from pawl.workflows_page(@after::text, @row_limit::integer, @bytes::bigint) w order by w.name;

-- name: GetSetting :one
select * from pawl.setting;

-- IsReadOnly says whether the server takes no writes, like a standby.
-- name: IsReadOnly :one
select current_setting('transaction_read_only')::boolean as read_only;
