/** Which images beside this one are made over it: nothing in a parent says so. */

import { readdirSync, realpathSync, type Stats, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { closeLayers, type Layer, openChain } from './chain.js'
import { chainOptions } from './open.js'

/** Files of a folder that are looked at; each costs an `open` and a read. */
const MOST_FILES = 10_000

/**
 * The images in the folder of an open image that name it as their parent and are right about that. What cannot be opened
 * is left out.
 * @param known one of them that is known: it is left out, and the others are of its format; undefined: of the image's own
 */
export function childrenBeside({ path, format, opened, storage }: Layer, known?: Layer): string[] {
  const self = statOf(path)
  const left = known && statOf(known.path)
  const childFormat = (known?.format ?? format).name
  const facts = { path: storage.path, format: format.name, layout: opened.layout, mtimeMs: self?.mtimeMs ?? 0 }
  const isChild = (file: string): boolean => {
    let layers: readonly Layer[] = []
    try {
      const options = chainOptions({ readOnly: true, format: childFormat, lock: false })
      layers = openChain(file, { ...options, parents: false })
      const parent = layers[0]!.opened.parent
      if (!parent?.candidates.some((candidate) => isSame(statOf(candidate), self))) return false
      parent.verify(facts, () => {})
      return true
    } catch {
      return false
    } finally {
      closeLayers(layers)
    }
  }
  return filesBeside(path).filter((file) => {
    const stats = statOf(file)
    return !isSame(stats, self) && !isSame(stats, left) && isChild(file)
  })
}

/** None where the folder cannot be read. */
function filesBeside(path: string): string[] {
  try {
    const folder = dirname(realpathSync(path))
    return readdirSync(folder, { withFileTypes: true })
      .filter((entry) => entry.isFile())
      .slice(0, MOST_FILES)
      .map(({ name }) => join(folder, name))
  } catch {
    return []
  }
}

function statOf(path: string): Stats | undefined {
  try {
    return statSync(path)
  } catch {
    return undefined
  }
}

const isSame = (a: Stats | undefined, b: Stats | undefined) =>
  a !== undefined && b !== undefined && a.dev === b.dev && a.ino === b.ino
