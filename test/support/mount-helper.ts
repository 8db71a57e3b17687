/** mount.fuse.vdiskfs of this build, as bin/mount.fuse.vdiskfs.js runs the one of dist/. */

import { mountHelper } from '../../lib/cli/mount-helper.js'

process.exitCode = await mountHelper(process.argv.slice(2))
