-- name: PurgeKeys :one
select pawl.purge_keys(@row_limit::integer)::integer as purged;

-- name: CountUsage :one
select pawl.count_usage(@row_limit::integer)::boolean as more;
