-- wrk's script: single texts, each different, over many connections that pause for random times, so that requests
-- arrive at a rate of their own (as from strangers) and not each after the one before. Prints one line of JSON.
local count, late = 0, 0
local mean_pause_ms = tonumber(os.getenv("MEAN_PAUSE_MS"))
local filler = os.getenv("FILLER")

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("API_KEY")

function setup(thread) the_thread = thread end

function delay() return math.floor(-mean_pause_ms * math.log(1 - math.random()) + 0.5) end

function request()
  count = count + 1
  return wrk.format(nil, nil, nil, '{"input":"' .. count .. " " .. filler .. '"}')
end

function response(status)
  if status == 202 then late = late + 1; wrk.thread:set("late", late) end
end

function done(summary, latency)
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    '\nJSON {"requests":%d,"seconds":%f,"p50_ms":%f,"p90_ms":%f,"p99_ms":%f,"max_ms":%f,"refused":%d,"failed":%d,"late":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, summary.errors.status, failed, the_thread:get("late") or 0))
end
