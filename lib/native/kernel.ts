/** Which kernel this is. */

import { release } from 'node:os'

/** True for Linux `major`.`minor` and newer. `kernel`: as uname(2) tells it, such as `6.1.0-9-amd64`. */
export function kernelIsAtLeast(major: number, minor: number, kernel: string = release()): boolean {
  const [first = 0, second = 0] = kernel.split('.').map(Number.parseFloat)
  return first > major || (first === major && second >= minor)
}
