/** An open image in another thread than the one that opened it. */

import { loadDrivers } from '../formats/drivers.js'
import { Image } from './image.js'
import type { ImageHandle } from './stack.js'

/** As `Image.attach`, with nothing loaded but the drivers that the image needs. */
export async function attachImage(handle: ImageHandle, thread: number): Promise<Image> {
  await loadDrivers(handle.layers.map(({ format }) => format))
  return Image.attach(handle, thread)
}
