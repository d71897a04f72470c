-- (time) → {term, version}: a learner's term begins; the learner before is fenced out, its claimed groups are queued
-- again
for _, group in ipairs(live(CLAIMED)) do
  move(group, 'queued', 'learner replaced')
  redis.call('ZADD', QUEUED, group, group)
end
redis.call('DEL', CLAIMED)
return { redis.call('HINCRBY', LEDGER, 'term', 1), number('version') }
