/** Entries for the registry of mounts, as a server claims them. */

import { thisProcess } from '../../lib/mount/processes.js'
import { type RegistryEntry, remove } from '../../lib/mount/registry.js'
import { atEnd, type TestCase } from './temp.js'

/** An entry of this process that nobody has claimed yet. Should somebody do so, it is removed when the test ends. */
export function registryEntry(t: TestCase, mountpoint: string, changes: Partial<RegistryEntry> = {}): RegistryEntry {
  const entry: RegistryEntry = {
    mountpoint,
    image: '/images/a.vhd',
    format: 'vhd',
    size: 1 << 20,
    ...thisProcess(),
    options: {
      readOnly: false,
      transport: 'kernel',
      backingDirs: [],
      allowOther: false,
      uid: 0,
      gid: 0,
      umask: 0o77,
      partitions: false,
    },
    log: undefined,
    phase: 'starting',
    ...changes,
  }
  atEnd(t, () => remove(entry))
  return entry
}
