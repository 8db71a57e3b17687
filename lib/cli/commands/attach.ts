/** `vdiskfs attach IMAGE`. */

import { partitionDevice } from '../../mount/loop.js'
import type { RegistryEntry } from '../../mount/registry.js'
import { startMount } from '../../mount/start.js'
import { VdiskError } from '../../util/errors.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { json } from '../output.js'
import { mountRequest, stay } from './mount.js'

export async function run(args: Arguments, io: Io): Promise<number> {
  if (process.getuid!() !== 0)
    throw new VdiskError('ACCESS', 'attach: only root can set up loop devices; vdiskfs mount works for every user')
  const request = mountRequest(args, args.positionals[0]!, undefined, io)
  const warn = (text: string) => io.err(`vdiskfs: ${text}\n`)
  const print = (entry: RegistryEntry) => io.out(args.has('json') ? json(facts(entry)) : `${entry.loop}\n`)
  if (args.has('foreground')) await stay(request, warn, print)
  else print(await startMount(request, warn))
  return 0
}

function facts({ loop, image, format, mountpoint, size, pid, options, partitions = [] }: RegistryEntry) {
  return {
    device: loop,
    image,
    format,
    'virtual-size': size,
    'read-only': options.readOnly,
    mountpoint,
    pid,
    partitions: partitions.map(({ number, ...rest }) => ({ number, device: partitionDevice(loop!, number), ...rest })),
  }
}
