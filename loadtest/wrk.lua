-- Posts one image over and over and prints a line of the benchmark table:
-- wrk -t1 -c16 -d10s -s loadtest/wrk.lua 'http://localhost:3000/classify?model=lenet5' -- docs/digit.png
function init(arguments)
   local file = assert(io.open(arguments[1], "rb"))
   wrk.method = "POST"
   wrk.body = file:read("*a")
   file:close()
end

function done(summary, latency)
   local seconds = summary.duration / 1e6
   local errors = summary.errors
   io.write(string.format("%.0f requests/s, p50 %.2f ms, p99 %.2f ms, %d requests, %d errors\n",
      summary.requests / seconds, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, summary.requests,
      errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
