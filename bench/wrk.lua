-- Sends the requests of a file in turn and prints the outcome as one line of JSON.
-- The file holds whole requests, separated by NUL. They are read before the clock starts, and sent from anywhere in the
-- file on: a short turn would else ask for the same few of many routes each time.

local requests, count, at = {}, 0, 0

function init(args)
   local file = assert(io.open(args[1], "rb"))
   for request in file:read("*a"):gmatch("[^%z]+") do
      count = count + 1
      requests[count] = request
   end
   file:close()
   math.randomseed(os.time())
   at = math.random(count)
end

function request()
   at = at % count + 1
   return requests[at]
end

function done(summary, latency)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
   io.write(string.format(
      '{"requests": %d, "seconds": %.6f, "failed": %d, "p50": %d, "p99": %d, "p999": %d}\n',
      summary.requests, summary.duration / 1e6, failed,
      latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
