/** `vdiskfs umount MOUNTPOINT`. */

import { endMount } from '../../mount/unmount.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'

export async function run(args: Arguments, io: Io): Promise<number> {
  await endMount(args.positionals[0]!, (text) => io.err(`vdiskfs: ${text}\n`))
  return 0
}
