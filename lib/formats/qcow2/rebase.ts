/** The backing file of an image that nobody has open: another one, or none. And taking the image's own data away. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Backing, RebaseContext } from '../driver.js'
import { storedName } from './backing.js'
import { aroundChange } from './bitmap-tools.js'
import { backingFormat } from './create.js'
import { Edit } from './edit.js'
import { type Extension, ExtensionType, encodeBackingRecord } from './extensions.js'
import { autoclearKept } from './features.js'
import { Autoclear, encodeHeader, type Header, MAX_BACKING_NAME, readHeader } from './header.js'
import { changeHeader } from './header-change.js'
import { writeDiskFields } from './header-fields.js'

const ENTRY_BYTES = 8

/** @throws USAGE for a name that is too long, or where the disk cannot be over another one */
export function rebaseQcow2(storage: Storage, { path, backing, change, look }: RebaseContext): void {
  // What it was before counts until the change is done.
  if (change === 'before') return
  const header = readHeader(storage)
  if (change === 'after') {
    const extensions = withRecord(header, backing)
    if (extensions !== header.extensions) changeHeader(storage, { ...header, extensions })
    return
  }
  const fail = (text: string) => new VdiskError('USAGE', text, { path: storage.path })
  if (backing && header.autoclear.includes(Autoclear.RAW_DATA_FILE))
    throw fail('its data file is a raw image of the whole disk, so it can have no backing file')
  const backingName = backing && Buffer.from(storedName(backing.path, path))
  if (backingName && backingName.length > MAX_BACKING_NAME)
    throw fail(`the backing file's name has ${backingName.length} bytes: expected at most ${MAX_BACKING_NAME}`)
  const others = withRecord(header, backing).filter(({ type }) => type !== ExtensionType.BACKING_FORMAT)
  const extensions = backing ? [backingFormat(backing), ...others] : others
  const next: Header = { ...header, backingName, extensions }
  if (look) encodeHeader(next, storage.path)
  else changeHeader(storage, { ...next, autoclear: autoclearKept(header, true) })
}

/** The extensions of an image: where they tell what the backing file was, they tell it of this one. */
function withRecord({ extensions }: Header, backing: Backing | undefined): readonly Extension[] {
  const others = extensions.filter(({ type }) => type !== ExtensionType.BACKING_RECORD)
  if (others.length === extensions.length) return extensions
  return backing?.record ? [...others, encodeBackingRecord(backing.record)] : others
}

/** A new L1 table with nothing in it; snapshots keep what they have. The order of writes is `Edit`'s. */
export function emptyQcow2(storage: Storage, dataFile: Storage | undefined): void {
  aroundChange(storage, false, () => {
    const edit = new Edit(storage)
    const { structure } = edit
    const l1TableOffset = edit.place(new Uint8Array(structure.header.l1Size * ENTRY_BYTES))
    const header: Header = { ...structure.header, l1TableOffset }
    edit.commit({ ...structure, header }, () => writeDiskFields(storage, header))
  })
  if (!dataFile) return
  dataFile.punch(0, dataFile.size())
  dataFile.sync()
}
