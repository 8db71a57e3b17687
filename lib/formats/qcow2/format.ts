/** QCOW2, as the registry knows it. */

import type { Format } from '../driver.js'
import { attach } from './attach.js'
import { addBitmap, bitmapExtents, clearBitmap, listBitmaps, removeBitmap } from './bitmap-tools.js'
import { checkImage } from './check.js'
import { createOptions, createQcow2 } from './create.js'
import { newEncryption } from './create-encryption.js'
import { qcow2Facts } from './facts.js'
import { withoutUnknown } from './features.js'
import { hasMagic } from './header.js'
import type { Qcow2Layout } from './layout.js'
import { openQcow2 } from './open.js'
import { emptyQcow2, rebaseQcow2 } from './rebase.js'
import { resizeQcow2 } from './resize.js'
import { applySnapshot, createSnapshot, deleteSnapshot, listSnapshots } from './snapshot-tools.js'

export const qcow2: Format<Qcow2Layout> = {
  name: 'qcow2',
  aliases: [],
  title: 'QEMU copy on write, versions 2 and 3',
  extensions: ['.qcow2'],
  backing: true,
  snapshots: true,
  createOptions,
  probe: ({ head }) => hasMagic(head),
  open: openQcow2,
  attach,
  prepare: newEncryption,
  create: createQcow2,
  facts: qcow2Facts,
  bitmaps: {
    list: (_, [image]) => listBitmaps(image!),
    extents: (_, [image], name) => bitmapExtents(image!, name),
    add: (_, [image], name, granularity) => addBitmap(withoutUnknown(image!), name, granularity),
    clear: (_, [image], name) => clearBitmap(withoutUnknown(image!), name),
    remove: (_, [image], name) => removeBitmap(withoutUnknown(image!), name),
  },
  snapshotTools: {
    list: (_, [image]) => listSnapshots(image!),
    create: (_, [image], name) => createSnapshot(withoutUnknown(image!), name),
    apply: (_, [image], wanted) => applySnapshot(withoutUnknown(image!), wanted),
    delete: (_, [image], wanted) => deleteSnapshot(withoutUnknown(image!), wanted),
  },
  resize: (layout, files, size, help) =>
    resizeQcow2(
      {
        ...help,
        layout,
        storage: withoutUnknown(files[0]!),
        dataFile: layout.dataFile && files[layout.dataFile.index],
      },
      size,
    ),
  rebase: (_, [image], context) => rebaseQcow2(image!, context),
  empty: ({ dataFile }, files) => emptyQcow2(withoutUnknown(files[0]!), dataFile && files[dataFile.index]),
  check: (context) => checkImage(context.storage, context),
}
