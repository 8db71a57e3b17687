import t from 'tap'
import { oddVariants } from './cut-short.js'
import { liveAtEnd, PLACES } from './ends.js'

const SEEDS = 3
const STEPS = 20

// A busy machine is no fault of the program.
t.setTimeout(300_000)

for (const variant of oddVariants)
  t.test(`random operations on ${variant.name} that ends inside of its last block`, async (t) => {
    for (const place of PLACES)
      for (let seed = 1; seed <= SEEDS; seed++)
        t.notOk(liveAtEnd(variant, place, seed, STEPS)?.replace(/^none$/, ''), `${place}, seed ${seed}`)
  })
