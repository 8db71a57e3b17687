/** VHDX, as the registry knows it. */

import type { Format } from '../driver.js'
import { attach } from './attach.js'
import { checkVhdx } from './check.js'
import { createVhdx, VHDX_OPTIONS } from './create.js'
import { vhdxFacts } from './facts.js'
import type { VhdxLayout } from './layout.js'
import { describeLog } from './log-facts.js'
import { openVhdx, probeVhdx, VHDX } from './open.js'
import { emptyVhdx, rebaseVhdx } from './rebase.js'
import { resizeVhdx } from './resize.js'

export const vhdx: Format<VhdxLayout> = {
  name: VHDX,
  aliases: [],
  title: 'Virtual Hard Disk version 2 (Hyper-V)',
  extensions: ['.vhdx', '.avhdx'],
  backing: true,
  identifiesParents: true,
  createOptions: VHDX_OPTIONS,
  probe: probeVhdx,
  open: openVhdx,
  attach,
  create: createVhdx,
  facts: vhdxFacts,
  check: checkVhdx,
  log: describeLog,
  resize: (layout, files, size) => resizeVhdx(layout, files[0]!, size),
  rebase: (layout, files, context) => rebaseVhdx(layout, files[0]!, context),
  empty: (layout, files) => emptyVhdx(layout, files[0]!),
}
