-- (time) → {term, version}: a learner begins; the one before it is fenced out, what it had claimed is queued again
for _, group in ipairs(live(CLAIMED)) do
  move(group, 'queued', 'learner replaced')
  redis.call('ZADD', QUEUED, group, group)
end
redis.call('DEL', CLAIMED)
return { redis.call('HINCRBY', LEDGER, 'term', 1), number('version') }
