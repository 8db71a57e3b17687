import t from 'tap'
import { variants } from '../model/variants.js'
import { faultsOf } from './life.js'

const SEED = 9
/** scripts/faults tries every operation. */
const MOST = 16

for (const variant of variants)
  t.test(`one operation of the host fails under ${variant.name}`, async (t) => {
    const { told, failures } = faultsOf(variant, SEED, MOST)
    for (const failure of failures.slice(0, 3)) t.fail(failure)
    t.equal(failures.length, 0)
    t.ok(told > 40, `${told} errors were told`)
  })
