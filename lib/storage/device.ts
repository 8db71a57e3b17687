/** Whether a storage is a block device, which keeps its size. */

import { fstatSync } from 'node:fs'
import type { Storage } from './storage.js'

export function isDevice({ descriptor }: Storage): boolean {
  return descriptor !== undefined && fstatSync(descriptor).isBlockDevice()
}
