/** Storages in other threads: a view of what a handle describes. */

import { FaultStorage } from './fault.js'
import { FileStorage } from './file-storage.js'
import { MemoryStorage } from './memory.js'
import { ReplayedStorage } from './replayed.js'
import type { Storage, StorageHandle } from './storage.js'

/** A view, in this thread, of a storage that another thread opened and keeps open. Closing it closes nothing. */
export function attachStorage(handle: StorageHandle): Storage {
  switch (handle.kind) {
    case 'file':
      return new FileStorage(handle.fd, handle.path, handle.readOnly, false, handle.syncAtClose)
    case 'memory':
      return MemoryStorage.attach(handle)
    case 'fault':
      return new FaultStorage(attachStorage(handle.inner), handle.control)
    case 'replayed':
      return new ReplayedStorage(attachStorage(handle.inner), handle.index)
  }
}
