-- The workers whose lease runs; changes nothing.
-- Gives  {name, capability hash, ...}, by name
local out = {}
local names = call('SMEMBERS', K.workers())
table.sort(names)
for _, name in ipairs(names) do
  local cap = call('EXISTS', K.lease(name)) == 1 and call('HGET', K.worker(name), 'cap')
  if cap and cap ~= '' then
    out[#out + 1] = name
    out[#out + 1] = cap
  end
end
return out
