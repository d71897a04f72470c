-- (time) → {term, version}: a learner begins; the one before it is fenced out, what it had claimed is queued again
for _, group in ipairs(redis.call('ZRANGE', CLAIMED, 0, -1)) do
  redis.call('ZADD', QUEUED, group, group)
  move(group, 'queued', 'learner replaced')
end
redis.call('DEL', CLAIMED)
return { redis.call('HINCRBY', LEDGER, 'term', 1), number('version') }
