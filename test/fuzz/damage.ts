/** Images with a few fields that are wrong, by their names in test/fuzz/anatomy/: what regressions are made of. */

import { openStorages } from '../../lib/image/open.js'
import { contents, randomFrom } from '../metadata/fixtures/metadata.js'
import { createInMemory, randomBytes, secret, type Variant, variants } from '../model/variants.js'
import { type Anatomy, type Text, writeNumber } from './anatomy/anatomy.js'
import { Pages } from './pages.js'
import { anatomyOf } from './seeds.js'

/** Values of fields (all of that name), and of entries of tables (`BAT[3]`). */
export type Damage = Readonly<Record<string, number | bigint>>

/** The variant of this name, such as `parallels cluster_size=64K`. */
export function variantOf(name: string): Variant {
  const found = variants.find((variant) => variant.name === name)
  if (!found) throw new Error(`no variant ${name}`)
  return found
}

/** An image of a variant (and its parents), with data in its first 100,000 bytes. */
export function imageOf(name: string): Pages[] {
  const random = randomFrom(1)
  const { storages } = createInMemory(variantOf(name), random)
  const image = openStorages(storages, { secret })
  const bytes = randomBytes(Math.min(image.size, 100_000), random)
  image.write(bytes, 0, bytes.length, 0)
  image.close()
  return storages.map((storage) => Pages.of(contents(storage)))
}

/** Changes fields, and makes the checksums right again. */
export function damage(bytes: Pages, format: string, fields: Damage): void {
  const anatomy = anatomyOf(format, bytes)
  for (const [name, value] of Object.entries(fields)) {
    const places = placesOf(anatomy, name)
    if (places.length === 0) throw new Error(`${format} has no field ${name} here`)
    for (const { at, width } of places)
      writeNumber(bytes, at, width, anatomy.bigEndian, BigInt.asUintN(8 * width, BigInt(value)))
  }
  for (const seal of anatomy.seals) seal(bytes)
}

function placesOf({ fields, tables }: Anatomy, name: string): { at: number; width: number }[] {
  const entry = /^(.*)\[(\d+)\]$/.exec(name)
  if (!entry) return fields.filter((field) => field.name === name)
  return tables
    .filter((table) => table.name === entry[1])
    .map(({ at, width }) => ({ at: at + width * Number(entry[2]), width }))
}

/** Writes a name over every one that is there, with its length. */
export function rename(bytes: Pages, format: string, name: string): void {
  const anatomy = anatomyOf(format, bytes)
  for (const text of anatomy.texts) {
    if (text.word) continue
    const raw = encode(text, name)
    bytes.put(text.at, raw)
    if (text.length) {
      const { at, width } = text.length
      writeNumber(bytes, at, width, anatomy.bigEndian, BigInt(raw.length))
    } else bytes.put(text.at + raw.length, new Uint8Array(Math.max(0, text.room - raw.length)))
  }
  for (const seal of anatomy.seals) seal(bytes)
}

export function encode({ encoding, room }: Text, text: string): Uint8Array {
  const raw = Buffer.from(text, encoding === 'utf8' ? 'utf8' : 'utf16le').subarray(0, room)
  return encoding === 'utf16be' ? raw.swap16() : raw
}
