-- For wrk: one member after the other asks the same. Arguments: file of tokens, method, path, body (may be empty),
-- and how many members to leave out.
local requests = {}
local number = 0

function init(arguments)
  local body = arguments[4] ~= "" and arguments[4] or nil
  for i, token in ipairs(dofile(arguments[1])) do
    local headers = {
      ["Authorization"] = "Bearer " .. token,
      ["Content-Type"] = body and "application/json",
    }
    requests[i] = wrk.format(arguments[2], arguments[3], headers, body)
  end
  number = tonumber(arguments[5])
end

function request()
  number = number % #requests + 1
  return requests[number]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "p50": %d, "p99": %d, "most": %d}\n',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency.max
  ))
end
