/** The driver for what `Format.open` found: an expanding image, or a bundle of parts. */

import type { Driver, LayerContext } from '../driver.js'
import { FlatDriver } from '../flat.js'
import { PartsDriver } from '../parts.js'
import { ImageDriver } from './driver.js'
import type { BundleLayout, Layout, PartLayout } from './layout.js'

export function attach(layout: Layout, context: LayerContext): Driver {
  return layout.kind === 'bundle' ? attachBundle(layout, context) : new ImageDriver(layout, context)
}

function attachBundle({ parts }: BundleLayout, context: LayerContext): Driver {
  return new PartsDriver(
    parts.map((part) => ({ start: part.start, length: part.length, driver: attachPart(part, context) })),
  )
}

function attachPart({ image, file, stateStart, stateEnd, length }: PartLayout, context: LayerContext): Driver {
  const ref = context.files[file]!
  const own = {
    ...context,
    files: [ref],
    state: context.state.subarray(stateStart, stateEnd),
    space: context.space?.of(ref),
  }
  return image ? new ImageDriver(image, own) : new FlatDriver(length, own)
}
