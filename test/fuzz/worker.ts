/** A process that tries inputs and says what it found; it is killed by its parent where one takes too long. */

import { Campaign } from './campaign.js'
import { watchOpens } from './disk.js'

const [format, seed, from, to, repairs] = process.argv.slice(2) as [string, string, string, string, string]

watchOpens()
const campaign = new Campaign(format, Number(seed), repairs !== '')
for (let number = Number(from); number < Number(to); number++) {
  // Goes out before the work begins: the channel is a socket that is written at once.
  process.send!({ begun: number })
  const wrong = campaign.run(number)
  if (wrong !== undefined) process.send!({ wrong })
  if (number % 64 === 0) await new Promise((resolve) => setImmediate(resolve))
}
campaign.end()
process.send!({ counts: campaign.counts }, () => process.disconnect())
