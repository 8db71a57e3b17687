/** QCOW2, as the registry knows it. */

import type { Format } from '../driver.js'
import { checkImage } from './check.js'
import { createOptions, createQcow2 } from './create.js'
import { Qcow2Driver } from './driver.js'
import { qcow2Facts } from './facts.js'
import { hasMagic } from './header.js'
import type { Qcow2Layout } from './layout.js'
import { openQcow2 } from './open.js'

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
  attach: (layout, context) => new Qcow2Driver(layout, context),
  create: createQcow2,
  facts: qcow2Facts,
  check: (context) => checkImage(context.storage, context),
}
