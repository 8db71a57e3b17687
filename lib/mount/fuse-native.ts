/** A mount over fuse-native: libfuse takes the requests, and the main thread answers them one by one. */

import { loadLibrary } from '../transports/fuse-native/library.js'
import { mount } from '../transports/fuse-native/mounting.js'
import { unmountWhileServing } from '../transports/unmount.js'
import type { MountTransport, ServeRequest, Serving } from './transports.js'
import { ImageTree } from './tree.js'

async function serve({ image, mountpoint, options, tree }: ServeRequest): Promise<Serving> {
  const { ended, device, requests } = await mount({
    mountpoint,
    source: image.path,
    readOnly: options.readOnly,
    allowOther: options.allowOther,
    systemOptions: options.systemOptions,
    uncached: options.partitions,
    tree: new ImageTree(image, tree),
  })
  return { ended, device, requests: () => ({ workers: 1, requests: requests() }) }
}

// Whoever asks for this transport learns at once where it cannot be used.
loadLibrary()

export const transport: MountTransport = {
  threads: () => 1,
  serve,
  unmount: unmountWhileServing,
}
