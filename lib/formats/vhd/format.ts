/** VHD, as the registry knows it. */

import type { Format } from '../driver.js'
import { attach } from './attach.js'
import { checkVhd } from './check.js'
import { createVhd, VHD_OPTIONS } from './create.js'
import { vhdFacts } from './facts.js'
import type { VhdLayout } from './layout.js'
import { openVhd, VHD } from './open.js'
import { endsAsFixed, probeVhd } from './probe.js'
import { rebaseVhd } from './rebase.js'
import { emptyVhd, resizeVhd } from './resize.js'

export const vhd: Format<VhdLayout> = {
  name: VHD,
  aliases: ['vpc'],
  title: 'Virtual Hard Disk (Virtual PC, Hyper-V, Azure, XenServer)',
  extensions: ['.vhd', '.avhd', '.vud'],
  backing: true,
  identifiesParents: true,
  createOptions: VHD_OPTIONS,
  probe: probeVhd,
  guestBegins: endsAsFixed,
  open: openVhd,
  attach,
  create: createVhd,
  facts: vhdFacts,
  check: checkVhd,
  resize: (layout, [storage], size, help) => resizeVhd(layout, storage!, size, help),
  rebase: (layout, [storage], context) => rebaseVhd(layout, storage!, context),
  empty: (layout, [storage]) => emptyVhd(layout, storage!),
}
