/** `vdiskfs detach DEVICE`. */

import { detach } from '../../mount/detach.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'

export async function run(args: Arguments, io: Io): Promise<number> {
  await detach(args.positionals[0]!, (text) => io.err(`vdiskfs: ${text}\n`))
  return 0
}
