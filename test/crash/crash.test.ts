import t, { type Test } from 'tap'
import { variants } from '../model/variants.js'
import { kinds } from './families.js'
import { type Plan, sweepChains, sweepLives, sweepOperations } from './sweep.js'

// A busy machine is no fault of the program.
t.setTimeout(600_000)

const PLAN: Plan = {
  operations: 50,
  losses: { life: 120, operation: 12, chain: 8 },
  moments: 12,
  goingOn: 12,
  qemu: 150,
  long: false,
}

/** The first failure is told: others are mostly the same. */
function expectNone(t: Test, sweep: Generator<string | undefined>, least: number): void {
  let states = 0
  for (const wrong of sweep) {
    if (wrong !== undefined) return void t.fail(wrong)
    states++
  }
  t.ok(states > least, `${states} states`)
}

for (const variant of variants) {
  t.test(`crashes of ${variant.name}`, async (t) => expectNone(t, sweepLives(variant, 1, PLAN), PLAN.losses.life))
  t.test(`crashes of operations of ${variant.name}`, async (t) => {
    expectNone(t, sweepOperations(variant, 3, PLAN), PLAN.losses.operation)
  })
}

for (const kind of kinds)
  t.test(`crashes of operations on ${kind.name}`, async (t) => {
    expectNone(t, sweepChains(kind, 5, PLAN), PLAN.losses.chain)
  })
