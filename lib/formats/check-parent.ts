/** Looking for the parent of an image that is checked: the part that is the same for all formats that name theirs. */

import { VdiskError } from '../util/errors.js'
import type { ParentRequest } from './opening.js'
import type { CheckContext, Finding } from './tools.js'

/**
 * A parent that is not there can come back, and the image is as good as it was: a warning. One that is another disk
 * than the child was made over would show a mixture of two disks: that is corruption, and nobody but the user can say
 * where the right one is.
 */
export function parentFindings(
  { lookForParent, storage }: CheckContext,
  request: ParentRequest,
): Pick<Finding, 'severity' | 'what' | 'message'>[] {
  const findings: Pick<Finding, 'severity' | 'what' | 'message'>[] = []
  let other = false
  try {
    lookForParent?.({
      ...request,
      verify(parent) {
        try {
          request.verify(parent, (message) => findings.push({ severity: 'warning', what: 'parent-changed', message }))
        } catch (error) {
          other = true
          throw error
        }
      },
    })
  } catch (error) {
    if (!(error instanceof VdiskError)) throw error
    const message = error.message.replace(`${storage.path}: `, '')
    // What is no image of its format at all is another disk, too.
    if (other || error.code === 'FORMAT') findings.push({ severity: 'corruption', what: 'parent-mismatch', message })
    else findings.push({ severity: 'warning', what: 'parent', message })
  }
  return findings
}
