-- Counts the instances whose history has a gap, or does not end at the version of the instance.
select count(*)
from (
  select h.tenant_id, h.instance_id as id, count(*) as steps, min(h.version) as first, max(h.version) as last
  from pawl.history h
  group by h.tenant_id, h.instance_id
) h
full join pawl.instance i on i.tenant_id = h.tenant_id and i.id = h.id
where (h.first, h.last, h.steps) is distinct from (1::bigint, i.version, i.version)
