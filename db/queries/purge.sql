-- name: PurgeKeys :one
select pawl.purge_keys(@row_limit::integer)::integer as purged;
