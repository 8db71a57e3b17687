/**
 * Finds out which footer of a VHD can be believed: the one at the end, or the copy that disks which grow have at the
 * beginning. Looks only; says what is wrong, and from which of the two it can be mended.
 */

import type { Storage } from '../../storage/storage.js'
import { onesComplementByteSum } from '../../util/checksum.js'
import { VdiskError } from '../../util/errors.js'
import type { Severity } from '../driver.js'
import { decodeHeader, HEADER_BYTES } from './dynamic-header.js'
import {
  checkVersion,
  DiskType,
  FOOTER,
  FOOTER_BYTES,
  FOOTER_CHECKSUM,
  type Footer,
  hex32,
  looksLikeFooter,
  OLD_FOOTER_BYTES,
} from './footer.js'
import { checkDataOffset } from './open.js'
import { differences, isBetween, sizeOf } from './two-footers.js'

/** Something wrong with a footer. */
export interface FooterFault {
  readonly severity: Severity
  readonly what: string
  readonly message: string
  readonly offset: number
  readonly found?: string
  readonly expected?: string
  /** Which of the two is to be written anew. */
  readonly mend: 'end' | 'copy'
  /** False: nobody can say what is right. */
  readonly certain: boolean
}

export interface JudgedFooter {
  readonly footer: Footer
  /** 512 bytes with a checksum that is right. */
  readonly bytes: Uint8Array
  /** Where the footer at the end begins, sound or not; the file's end where there is none. */
  readonly offset: number
  /** 512 or 511; 0 where there is nothing at the end that looks like one. */
  readonly length: number
  /** A footer at the end can be read by programs as it is. */
  readonly sound: boolean
  /** False: all checksums are wrong, and only the rest of the image can confirm the fields. */
  readonly proven: boolean
  readonly faults: readonly FooterFault[]
}

/** 512 bytes that begin as a footer does. */
interface Seen {
  readonly offset: number
  readonly length: number
  readonly bytes: Uint8Array
  /** Undefined: a field cannot be read. */
  readonly footer: Footer | undefined
  readonly sound: boolean
  readonly found: string
  readonly expected: string
}

function look(storage: Storage, offset: number, length: number): Seen | undefined {
  if (offset < 0) return undefined
  const bytes = new Uint8Array(FOOTER_BYTES)
  if (storage.read(bytes, 0, length, offset) < length || !looksLikeFooter(bytes, 0)) return undefined
  const view = new DataView(bytes.buffer)
  const found = view.getUint32(FOOTER_CHECKSUM)
  const expected = onesComplementByteSum(bytes, FOOTER_CHECKSUM)
  view.setUint32(FOOTER_CHECKSUM, expected)
  const footer = readFields(bytes)
  const sound = found === expected && footer !== undefined
  return { offset, length, bytes, footer, sound, found: hex32(found), expected: hex32(expected) }
}

function readFields(bytes: Uint8Array): Footer | undefined {
  try {
    return FOOTER.read(bytes)
  } catch (error) {
    if (error instanceof VdiskError && error.code === 'CORRUPT') return undefined
    throw error
  }
}

function lookAtEnd(storage: Storage): Seen | undefined {
  const size = storage.size()
  const seen = [FOOTER_BYTES, OLD_FOOTER_BYTES].map((length) => look(storage, size - length, length))
  return seen.find((one) => one?.sound) ?? seen.find((one) => one !== undefined)
}

const isFixed = ({ diskType }: Footer) => diskType === DiskType.FIXED

/** A fixed disk's footer lies directly behind as many bytes as it says. */
function fixedFits({ footer, offset }: Seen): boolean {
  return footer !== undefined && isFixed(footer) && [sizeOf(footer), footer.currentSize].includes(offset)
}

/** True where there is a sound header for this footer. */
function headerFits(storage: Storage, footer: Footer, end: number): boolean {
  try {
    const offset = checkDataOffset(footer, end, storage.path)
    const bytes = new Uint8Array(HEADER_BYTES)
    storage.read(bytes, 0, HEADER_BYTES, offset)
    decodeHeader(bytes, { diskSize: sizeOf(footer), end }, {})
    return true
  } catch (error) {
    if (error instanceof VdiskError && (error.code === 'CORRUPT' || error.code === 'UNSUPPORTED')) return false
    throw error
  }
}

/**
 * Which footer counts, and what is wrong with it and with the other one.
 * @throws FORMAT where there is none at all, CORRUPT where none can be read, UNSUPPORTED, IO
 */
export function judgeFooters(storage: Storage): JudgedFooter {
  const { path } = storage
  const end = lookAtEnd(storage)
  const copy = look(storage, 0, FOOTER_BYTES)
  if (!end && !copy) {
    const text = "not a VHD: no footer ('conectix') in its last 512 bytes, and no copy of one in its first"
    throw new VdiskError('FORMAT', text, { path })
  }
  const judged = judge(storage, end, copy)
  if (!judged) throw new VdiskError('CORRUPT', 'VHD footer: its fields make no sense, nor those of a copy', { path })
  checkVersion('VHD footer: file format version', judged.footer.fileFormatVersion, { path })
  return judged
}

function judge(storage: Storage, end: Seen | undefined, copy: Seen | undefined): JudgedFooter | undefined {
  const offset = end?.offset ?? storage.size()
  const common = { offset, length: end?.length ?? 0, sound: end?.sound ?? false }
  const from = (seen: Seen, faults: readonly FooterFault[], proven = true): JudgedFooter | undefined =>
    seen.footer && { ...common, footer: seen.footer, bytes: seen.bytes, proven, faults }
  const goodCopy = copy?.sound && copy.footer && !isFixed(copy.footer) ? copy : undefined
  if (end?.sound) {
    // What is at the beginning of a fixed disk is the guest's.
    if (isFixed(end.footer!)) return from(end, [])
    if (!goodCopy) return from(end, [copyFault(copy, true)])
    if (Buffer.compare(end.bytes, copy!.bytes) === 0) return from(end, [])
    return compare(storage, end, goodCopy, from)
  }
  if (goodCopy && !(end && fixedFits(end))) return from(goodCopy, [endFault(offset, end, true)])
  if (end?.footer) {
    if (isFixed(end.footer)) return from(end, [endFault(offset, end, fixedFits(end))], false)
    // Two that say the same in all but their checksums confirm each other; so does one that is alone.
    const certain = copy === undefined || Buffer.compare(copy.bytes, end.bytes) === 0
    return from(end, [endFault(offset, end, certain), copyFault(copy, certain)], false)
  }
  if (!copy) return undefined
  return from(copy, [endFault(offset, end, true), copyFault(copy, true)], false)
}

function checksumText({ footer, found, expected }: Seen): string {
  return footer ? `its checksum is ${found}: expected ${expected}` : 'its fields cannot be read'
}

function endFault(offset: number, end: Seen | undefined, certain: boolean): FooterFault {
  const common = { severity: 'corruption', offset, mend: 'end', certain } as const
  if (!end)
    return {
      ...common,
      what: 'footer-missing',
      message: "the footer at the file's end is missing: the file may have been cut short",
    }
  const message = `the footer at byte ${offset} is damaged: ${checksumText(end)}`
  return { ...common, what: 'footer-checksum', message, found: end.found, expected: end.expected }
}

function copyFault(copy: Seen | undefined, certain: boolean): FooterFault {
  const common = { severity: 'corruption', what: 'footer-copy', offset: 0, mend: 'copy', certain } as const
  if (!copy) return { ...common, message: "the copy of the footer at the file's beginning is missing" }
  const checked = copy.found !== copy.expected || !copy.footer
  const text = checked ? checksumText(copy) : 'it says that the disk is a fixed one'
  const message = `the copy of the footer at the file's beginning is damaged: ${text}`
  return { ...common, message, ...(checked && { found: copy.found, expected: copy.expected }) }
}

/** Both are sound and say different things: the one that the header bears out is right. */
function compare(
  storage: Storage,
  end: Seen,
  copy: Seen,
  from: (seen: Seen, faults: readonly FooterFault[]) => JudgedFooter | undefined,
): JudgedFooter | undefined {
  const differs = differences(end.footer!, copy.footer!)[0]
  const common = { what: 'footer-differs', offset: 0, mend: 'copy' } as const
  if (!differs) {
    const message = 'the copy of the footer at the beginning differs from the footer in fields that decide nothing'
    return from(end, [{ ...common, severity: 'warning', message, certain: true }])
  }
  const { name, of } = differs
  const [found, expected] = [of(copy.footer!), of(end.footer!)]
  const message = `${name} is ${expected} in the footer at the end and ${found} in its copy`
  const fault = { ...common, severity: 'corruption', message, found, expected } as const
  const endFits = headerFits(storage, end.footer!, end.offset)
  const copyFits = headerFits(storage, copy.footer!, end.offset)
  if (endFits && copyFits && isBetween(end.footer!, copy.footer!)) {
    const text = `${message}: a change of it was interrupted, and the one at the end counts; programs that go by the copy see the other`
    return from(end, [{ ...fault, severity: 'warning', message: text, certain: true }])
  }
  if (endFits === copyFits)
    return from(end, [{ ...fault, message: `${message}, and nothing says which is right`, certain: false }])
  if (endFits) return from(end, [{ ...fault, certain: true }])
  return from(copy, [{ ...fault, offset: end.offset, found: expected, expected: found, mend: 'end', certain: true }])
}
