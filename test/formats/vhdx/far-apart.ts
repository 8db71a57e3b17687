/** Disks with a large table, written at places that are far apart: every place changes pages of its own. */

import { parseOptions } from '../../../lib/formats/options.js'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import { scanTable } from '../../../lib/formats/vhdx/scan.js'
import { openStorages } from '../../../lib/image/open.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { contextOf, MiB } from './bytes.js'

const GiB = 1024 * MiB

export interface Kind {
  readonly name: string
  /** Guest bytes between the places that are written. */
  readonly apart: number
  readonly places: number
  readonly child: boolean
}

export const KINDS: readonly Kind[] = [
  // One page of the table is 512 blocks, less the entries of bitmaps.
  { name: 'a dynamic disk', apart: 513 * MiB, places: 600, child: false },
  // Every place in a chunk of its own: two pages of the table, one of a bitmap.
  { name: 'a differencing disk', apart: 4097 * MiB, places: 150, child: true },
]

/** What was done to one sector: value, and the moments before and after. */
export interface Done {
  readonly place: number
  readonly value: number
  readonly began: number
  flushed: number
}

/** The image, and its parent where it has one. */
export function newImage({ apart, places, child }: Kind): MemoryStorage[] {
  const size = places * apart
  const options = parseOptions('vhdx', vhdx.createOptions, ['block_size=1M'])
  const storage = MemoryStorage.create({ path: 'image.vhdx', maxSize: GiB })
  if (!child) {
    vhdx.create({ storage, path: '/image.vhdx', size, options, backing: undefined })
    return [storage]
  }
  const parent = MemoryStorage.create({ path: 'parent.vhdx', maxSize: GiB })
  vhdx.create({ storage: parent, path: '/parent.vhdx', size, options, backing: undefined })
  const { layout } = vhdx.open(contextOf(parent))
  const backing = { path: '/parent.vhdx', format: 'vhdx', layout, size, mtimeMs: 0 }
  vhdx.create({ storage, path: '/image.vhdx', size, options, backing })
  return [storage, parent]
}

/** The values that the place may have when a crash comes at a moment. */
function allowed(steps: readonly Done[], moment: number): number[] {
  const values = [0]
  for (const { value, began, flushed } of steps) {
    if (flushed <= moment) values.length = 0
    if (began <= moment) values.push(value)
  }
  return values
}

export interface Life {
  readonly kind: Kind
  readonly done: readonly Done[]
  readonly parents: readonly MemoryStorage[]
}

/** @returns what is wrong, or undefined */
export function check(life: Life, storage: MemoryStorage, moment: number, readOnly: boolean): string | undefined {
  const { kind, done, parents } = life
  try {
    const image = openStorages([storage, ...parents], { readOnly })
    const sector = new Uint8Array(512)
    let wrong: string | undefined
    for (let place = 0; place < kind.places; place++) {
      image.read(sector, 0, 512, place * kind.apart)
      const values = allowed(
        done.filter((step) => step.place === place),
        moment,
      )
      if (!values.includes(sector[0]!) || sector.some((byte) => byte !== sector[0]))
        wrong = `place ${place} holds ${sector[0]}, and may hold ${values}`
    }
    image.close()
    const { layout } = vhdx.open(contextOf(storage))
    if (!readOnly) scanTable(layout, storage, storage.size())
    return wrong
  } catch (error) {
    return String(error)
  }
}
