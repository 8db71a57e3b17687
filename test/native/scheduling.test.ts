import { readFileSync } from 'node:fs'
import t from 'tap'
import { coresOf, setCores } from '../../lib/native/scheduling.js'

/** As proc(5) has it: `0-3,8`. */
function allowedList(): string {
  return /^Cpus_allowed_list:\s*(.*)$/m.exec(readFileSync('/proc/thread-self/status', 'latin1'))![1]!
}

function parseList(list: string): number[] {
  return list.split(',').flatMap((range) => {
    const [first, last = first] = range.split('-').map(Number) as [number, number?]
    return Array.from({ length: last! - first! + 1 }, (_, i) => first! + i)
  })
}

const SELF = 0

t.test('the cores of a thread', async (t) => {
  const before = coresOf(SELF)
  t.same(before, parseList(allowedList()))
  t.teardown(() => setCores(SELF, before))
  const last = before.at(-1)!
  setCores(SELF, [last])
  t.equal(allowedList(), `${last}`)
  t.same(coresOf(SELF), [last])
  setCores(SELF, before)
  t.same(parseList(allowedList()), before)
})

t.test('threads that are not there, and cores', async (t) => {
  t.throws(() => coresOf(2 ** 30), { code: 'ESRCH' })
  t.throws(() => setCores(2 ** 30, [0]), { code: 'ESRCH' })
  t.throws(() => setCores(SELF, []), { code: 'EINVAL' })
})
