/** The command line of this build, as bin/vdiskfs.js runs the one of dist/. */

import { main, processIo } from '../../lib/cli/main.js'

process.exitCode = await main(process.argv.slice(2), processIo())
