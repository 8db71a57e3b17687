/** What is counted of requests. */

import t from 'tap'
import {
  quantile,
  RequestKind,
  RequestRecorder,
  type RequestSummary,
  summarizeRequests,
} from '../../lib/transports/statistics.js'

t.test('nothing asked, nothing told', async (t) => {
  t.same(summarizeRequests(RequestRecorder.allocate(4)), [])
})

t.test('the parts of all threads are added up', async (t) => {
  const shared = RequestRecorder.allocate(3)
  const [zero, one, two] = [0, 1, 2].map((thread) => new RequestRecorder(shared, thread)) as RequestRecorder[]
  one!.record(RequestKind.READ, 4096, 0.003, false)
  two!.record(RequestKind.READ, 512, 0.5, false)
  two!.record(RequestKind.READ, 0, 2, true)
  zero!.record(RequestKind.SYNC, 0, 40, false)
  const [read, sync, ...rest] = summarizeRequests(shared)
  t.same(rest, [])
  t.match(read, { kind: 'read', count: 3, failed: 1, bytes: 4608, maxMs: 2 })
  t.equal(read!.totalMs, 2.503)
  // 3 µs is below 4 = 2^2, 500 below 512 = 2^9, 2000 below 2048 = 2^11.
  t.same(
    read!.histogram.flatMap((n, i) => (n > 0 ? [[i, n]] : [])),
    [
      [2, 1],
      [9, 1],
      [11, 1],
    ],
  )
  t.match(sync, { kind: 'sync', count: 1, failed: 0, bytes: 0, maxMs: 40 })
})

t.test('times out of all proportion', async (t) => {
  const shared = RequestRecorder.allocate(1)
  const recorder = new RequestRecorder(shared, 0)
  for (const ms of [0, 1e9, 0.0001]) recorder.record(RequestKind.WRITE, 1, ms, false)
  const { histogram, count, maxMs } = summarizeRequests(shared)[0]!
  t.equal(count, 3)
  t.equal(maxMs, 1e9)
  t.equal(histogram[0], 2)
  t.equal(histogram.at(-1), 1)
})

t.test('quantiles are the upper ends of buckets', async (t) => {
  const histogram = [0, 0, 50, 48, 0, 2]
  const summary: RequestSummary = { kind: 'read', count: 100, failed: 0, bytes: 0, totalMs: 1, maxMs: 1, histogram }
  t.equal(quantile(summary, 0.5), 4)
  t.equal(quantile(summary, 0.51), 8)
  t.equal(quantile(summary, 0.98), 8)
  t.equal(quantile(summary, 0.99), 32)
  t.equal(quantile(summary, 1), 32)
})
