/**
 * DiskDescriptor.xml of a bundle: which files make up the disk, and how its snapshots depend on each other. Source: QEMU's
 * docs/interop/prl-xml, and bundles that Parallels Desktop wrote.
 *
 * XML is a hostile format: a document type, which alone can define entities, is refused before anything is parsed, and the
 * five entities of XML itself are put in here.
 */

import { createRequire } from 'node:module'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { formatGuid, NIL_GUID, parseGuid } from '../../util/guid.js'
import { MiB } from '../../util/sizes.js'

export const DESCRIPTOR_NAME = 'DiskDescriptor.xml'
const ROOT = 'Parallels_disk_image'
const SECTOR = 512
/** Real ones have a few thousand bytes, and some more for every snapshot. */
const MAX_BYTES = 8 * MiB
/** The top snapshot where the descriptor does not name one. */
const DEFAULT_TOP = '5fbaabe3-6958-40ff-92a7-860e329aab41'

/** One file of a storage. */
export interface DescribedImage {
  readonly guid: string
  readonly plain: boolean
  /** As the descriptor has it. */
  readonly file: string
}

/** A range of the disk, with an image for every snapshot. Bytes. */
export interface DescribedStorage {
  readonly start: number
  readonly end: number
  readonly clusterSize: number
  readonly images: readonly DescribedImage[]
}

export interface Descriptor {
  /** Bytes. */
  readonly size: number
  /** In order, without gaps, from 0 to `size`. */
  readonly storages: readonly DescribedStorage[]
  /** From a snapshot's GUID to its parent's; NIL_GUID has none. */
  readonly parents: ReadonlyMap<string, string>
  readonly top: string
}

type Node = Readonly<Record<string, unknown>>

export function isDescriptor(head: Uint8Array): boolean {
  return Buffer.from(head.subarray(0, 4096)).includes(`<${ROOT}`)
}

/** @throws CORRUPT, UNSUPPORTED, IO */
export function readDescriptor(storage: Storage): Descriptor {
  const { path } = storage
  const size = storage.size()
  if (size > MAX_BYTES) throw new VdiskError('CORRUPT', `${size} bytes, expected at most ${MAX_BYTES}`, { path })
  const bytes = Buffer.alloc(size)
  storage.read(bytes, 0, size, 0)
  return parseDescriptor(bytes.toString('utf8'), path)
}

export function parseDescriptor(xml: string, path: string): Descriptor {
  return new Reader(path).read(xml)
}

class Reader {
  readonly #path: string

  constructor(path: string) {
    this.#path = path
  }

  read(xml: string): Descriptor {
    const root = this.#parse(xml)
    if (root['@Version'] !== '1.0') throw this.#unsupported(`version ${String(root['@Version'])}, expected 1.0`)
    const parameters = this.#child(root, 'Disk_Parameters')
    const size = this.#number(parameters, 'Disk_size') * SECTOR
    this.#refuseWhatCannotBeRead(parameters)
    const storages = this.#list(this.#child(root, 'StorageData'), 'Storage').map((node) => this.#storage(node))
    this.#checkSeams(storages, size)
    const parents = this.#shots(root, storages)
    return { size, storages, parents, top: this.#top(root, parents) }
  }

  #corrupt(message: string): VdiskError {
    return new VdiskError('CORRUPT', message, { path: this.#path })
  }

  #unsupported(message: string): VdiskError {
    return new VdiskError('UNSUPPORTED', message, { path: this.#path })
  }

  #parse(xml: string): Node {
    const text = xml.replace(/^\uFEFF/, '')
    if (text.trim() === '') throw this.#corrupt('it is empty')
    // What UTF-16 looks like, with or without its mark.
    if (/\0|^\uFFFD/.test(text)) throw this.#corrupt('it is no XML in UTF-8')
    if (/<!DOCTYPE/i.test(text)) throw this.#corrupt('it has a document type, expected none')
    let document: Node
    try {
      // Loaded where it is needed: an import would cost every program that opens any image 10 MiB and 70 ms.
      const { XMLParser, XMLValidator }: typeof import('fast-xml-parser') = load('fast-xml-parser')
      const valid = XMLValidator.validate(text)
      if (valid !== true) throw this.#corrupt(`line ${valid.err.line}: ${valid.err.msg}`)
      document = new XMLParser(PARSER_OPTIONS).parse(text) as Node
    } catch (error) {
      if (error instanceof VdiskError) throw error
      throw new VdiskError('CORRUPT', `it is no XML: ${(error as Error).message}`, { path: this.#path, cause: error })
    }
    return this.#child(document, ROOT)
  }

  #child(node: Node, name: string): Node {
    const child = this.#list(node, name)[0]
    if (!child) throw this.#corrupt(`it has no element ${name}`)
    return child
  }

  /** Elements of one name; the parser gives one as itself and several as an array. */
  #list(node: Node, name: string): Node[] {
    const found = node[name]
    const all: unknown[] = found === undefined || found === '' ? [] : Array.isArray(found) ? found : [found]
    return all.filter((child): child is Node => child !== null && typeof child === 'object')
  }

  #text(node: Node, name: string): string {
    const found = node[name]
    if (typeof found !== 'string') throw this.#corrupt(`it has no ${name} where one is needed`)
    return decodeEntities(found)
  }

  #number(node: Node, name: string): number {
    const text = this.#text(node, name).trim()
    const value = Number(text)
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value * SECTOR))
      throw this.#corrupt(`${name} is '${text}', expected a number of sectors`)
    return value
  }

  #guid(node: Node, name: string): string {
    const text = this.#text(node, name).trim()
    try {
      return formatGuid(parseGuid(text, 'big'), 'big')
    } catch {
      throw this.#corrupt(`${name} is '${text}', expected a GUID`)
    }
  }

  #refuseWhatCannotBeRead(parameters: Node): void {
    const padding = parameters.Padding
    if (padding !== undefined && padding !== '' && padding !== '0')
      throw this.#unsupported(`Padding is ${String(padding)}, expected 0`)
    const engine = this.#list(parameters, 'Encryption')[0]?.Engine
    if (typeof engine === 'string' && engine !== '' && !engine.includes(NIL_GUID))
      throw this.#unsupported(`the disk is encrypted (by ${engine}), which cannot be read`)
  }

  #storage(node: Node): DescribedStorage {
    const start = this.#number(node, 'Start') * SECTOR
    const end = this.#number(node, 'End') * SECTOR
    const clusterSize = this.#number(node, 'Blocksize') * SECTOR
    const images = this.#list(node, 'Image').map((image) => this.#image(image))
    if (images.length === 0) throw this.#corrupt(`the storage from sector ${start / SECTOR} on has no image`)
    return { start, end, clusterSize, images }
  }

  #image(node: Node): DescribedImage {
    const type = this.#text(node, 'Type').trim()
    if (type !== 'Plain' && type !== 'Compressed')
      throw this.#unsupported(`an image of type '${type}', expected Plain or Compressed`)
    return { guid: this.#guid(node, 'GUID'), plain: type === 'Plain', file: this.#file(node) }
  }

  /** A name that can be one: where it leads is for others to judge. */
  #file(node: Node): string {
    const file = this.#text(node, 'File').trim()
    const last = file.split(/[\\/]/).at(-1)!
    if (['', '.', '..'].includes(last) || file.includes('\0'))
      throw this.#corrupt(`the File of an image is '${file}', expected the name of a file`)
    return file
  }

  /** Storages lie side by side; sorts them. */
  #checkSeams(storages: DescribedStorage[], size: number): void {
    storages.sort((a, b) => a.start - b.start)
    let at = 0
    for (const { start, end } of storages) {
      if (start !== at || end <= start)
        throw this.#corrupt(
          `a storage has sectors ${start / SECTOR} to ${end / SECTOR}, expected one from ${at / SECTOR} on`,
        )
      at = end
    }
    if (at !== size)
      throw this.#corrupt(`its storages end at sector ${at / SECTOR}, expected ${size / SECTOR}, the disk's size`)
  }

  #shots(root: Node, storages: readonly DescribedStorage[]): Map<string, string> {
    const parents = new Map<string, string>()
    for (const node of this.#list(root, 'Snapshots'))
      for (const shot of this.#list(node, 'Shot')) parents.set(this.#guid(shot, 'GUID'), this.#guid(shot, 'ParentGUID'))
    // A disk that never had a snapshot may do without the list.
    if (parents.size === 0 && storages[0]?.images.length === 1) parents.set(storages[0].images[0]!.guid, NIL_GUID)
    if (parents.size === 0) throw this.#corrupt('it lists no snapshots, and several images')
    return parents
  }

  #top(root: Node, parents: ReadonlyMap<string, string>): string {
    const node = this.#list(root, 'Snapshots')[0]
    if (node && typeof node.TopGUID === 'string' && node.TopGUID.trim() !== '') return this.#guid(node, 'TopGUID')
    if (parents.has(DEFAULT_TOP)) return DEFAULT_TOP
    const inner = new Set(parents.values())
    const tops = [...parents.keys()].filter((guid) => !inner.has(guid))
    if (tops.length === 1) return tops[0]!
    throw this.#corrupt(`it names no top snapshot, and could mean ${tops.join(' or ') || 'none'}`)
  }
}

const load = createRequire(import.meta.url)

const PARSER_OPTIONS = {
  ignoreAttributes: false,
  attributeNamePrefix: '@',
  parseTagValue: false,
  parseAttributeValue: false,
  processEntities: false,
  trimValues: true,
}

const ENTITIES: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" }

/** The entities that XML has without any definition. */
function decodeEntities(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w+));/gi, (whole, decimal, hexadecimal, name) => {
    if (name !== undefined) return ENTITIES[name as string] ?? whole
    const code = decimal === undefined ? Number.parseInt(hexadecimal, 16) : Number(decimal)
    return code <= 0x10ffff ? String.fromCodePoint(code) : whole
  })
}
