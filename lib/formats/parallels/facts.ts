/** What `info` tells of an expanding image. */

import type { Storage } from '../../storage/storage.js'
import type { Facts } from '../driver.js'
import { FLAG_NECESSARY, FLAG_TRANSIT } from './extension.js'
import { bitmapsTrusted, FLAG_EMPTY, geometryOf, readHeader, stateText } from './header.js'
import { extensionOf } from './image.js'

export function imageFacts(storage: Storage): Facts {
  const header = readHeader(storage)
  const geometry = geometryOf(header)
  const { clusterSize, dataStart, entries } = geometry
  const loaded = extensionOf(storage, header, geometry)
  return {
    magic: header.magic,
    'cluster-size': clusterSize,
    'data-offset': dataStart,
    'bat-entries': entries,
    state: stateText(header),
    empty: (header.flags & FLAG_EMPTY) !== 0,
    ...(loaded && 'error' in loaded && { 'extension-error': loaded.error }),
    ...(loaded && 'extension' in loaded && { features: loaded.extension.features.map((f) => f.magic + wordsOf(f)) }),
    ...(loaded &&
      'extension' in loaded && {
        bitmaps: loaded.extension.features.flatMap(({ bitmap }) =>
          bitmap
            ? { name: bitmap.id, granularity: bitmap.granularity, flags: bitmapsTrusted(header) ? [] : ['in-use'] }
            : [],
        ),
      }),
  }
}

function wordsOf({ flags, error, bitmap }: { flags: number; error: string | undefined; bitmap: unknown }): string {
  const words = [
    bitmap ? 'dirty bitmap' : '',
    (flags & FLAG_NECESSARY) !== 0 ? 'necessary' : '',
    (flags & FLAG_TRANSIT) !== 0 ? 'transit' : '',
    error ?? '',
  ].filter((word) => word !== '')
  return ` (${words.join(', ')})`
}
