-- name: AuditNote :exec
select pawl.audit_note(
  @tenant::text, @caller::jsonb, @action::text, @outcome::text, sqlc.narg('reason')::text, @count::bigint);

-- name: AuditPage :many
select *
from pawl.audit_page(
  sqlc.narg('tenant')::text, sqlc.narg('workflows')::text[], sqlc.narg('target')::text, sqlc.narg('actor')::text,
  sqlc.narg('action')::text, sqlc.narg('outcome')::text, sqlc.narg('from_time')::timestamptz, sqlc.narg('to_time')::timestamptz,
  @after::bigint, @row_limit::integer, @bytes::bigint);

-- name: AuditPurge :one
select p.purged::integer as purged, p.kept::bigint as kept from pawl.audit_purge(@before::timestamptz, @row_limit::integer) p;
