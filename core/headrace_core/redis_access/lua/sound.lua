-- Checks that every figure of the ledger is a number before the script changes anything.
for _, names in ipairs({ STATES, FIGURES }) do
  for i, found in pairs(redis.call('HMGET', LEDGER, unpack(names))) do
    if found and not is_figure(found) then damaged(LEDGER .. ' ' .. names[i], 'it is no whole number') end
  end
end
