-- name: SchemaState :one
-- Reads from the catalogs, which every role may do: whether the schema exists, whether this role may read its
-- version, and which of the given privileges this role lacks. It does not report what does not exist.
with pawl as (select n.oid from pg_catalog.pg_namespace n where n.nspname = 'pawl')
select
  exists (select from pg_catalog.pg_class c join pawl on pawl.oid = c.relnamespace where c.relname = 'setting')::boolean as made,
  exists (
    select from pg_catalog.pg_proc p join pawl on pawl.oid = p.pronamespace where p.proname = 'schema_version'
  )::boolean as versioned,
  exists (
    select from pg_catalog.pg_proc p join pawl on pawl.oid = p.pronamespace
    where p.proname = 'schema_version' and has_schema_privilege(pawl.oid, 'usage') and has_function_privilege(p.oid, 'execute')
  )::boolean as version_readable,
  array(
    select 'usage on schema pawl' from pawl where not has_schema_privilege(pawl.oid, 'usage')
    union all
    select 'select on pawl.' || c.relname from pg_catalog.pg_class c join pawl on pawl.oid = c.relnamespace
    where 'pawl.' || c.relname = any (@relations::text[]) and not has_table_privilege(c.oid, 'select')
    union all
    select 'select on pawl.' || c.relname || '.' || a.attname
    from pg_catalog.pg_class c
    join pawl on pawl.oid = c.relnamespace
    join pg_catalog.pg_attribute a on a.attrelid = c.oid
    where 'pawl.' || c.relname || '.' || a.attname = any (@columns::text[]) and not has_column_privilege(c.oid, a.attnum, 'select')
    union all
    select 'execute on pawl.' || p.proname from pg_catalog.pg_proc p join pawl on pawl.oid = p.pronamespace
    where 'pawl.' || p.proname = any (@functions::text[]) and not has_function_privilege(p.oid, 'execute')
  )::text[] as missing_privileges;

-- name: SchemaVersion :one
select pawl.schema_version()::integer as version;
