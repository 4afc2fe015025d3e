/** What a plugin is, and how files with plugins are found. */

import * as fs from 'node:fs'
import * as path from 'node:path'
import { pathToFileURL } from 'node:url'

import type { PostRequest, PostResponse, Request, Response } from './http'

/** A plugin: what a file exports as its default, or a class that makes one. */
export interface Plugin<Conf = unknown> {
  /** The name that routes use. */
  getName(): string
  /** Makes of a route's text what the filters get. Called once for a route, not once for a request. */
  parseConf?(conf: string): Conf | Promise<Conf>
  /** Called for a request, before it goes to the upstream. */
  filter?(conf: Conf, request: Request, response: Response): void | Promise<void>
  /** Called for a response of the upstream, where a route has `ext-plugin-post-resp`. */
  filterResponse?(conf: Conf, request: PostRequest, response: PostResponse): void | Promise<void>
}

/** Plugins by their names. */
export type Plugins = ReadonlyMap<string, Plugin>

/**
 * Imports plugins from files and from all files of directories. What an import throws is thrown: a plugin that is
 * missing without a word would let requests pass that it should stop.
 */
export async function load(places: readonly string[]): Promise<Plugins> {
  const plugins = new Map<string, Plugin>()
  for (const file of places.flatMap(files)) {
    const plugin = await importPlugin(file)
    const name = plugin.getName()
    if (plugins.has(name)) throw new Error(`${file}: there is a plugin \`${name}\` already`)
    plugins.set(name, plugin)
  }
  return plugins
}

function files(place: string): string[] {
  if (!fs.statSync(place).isDirectory()) return [place]
  const names = fs.readdirSync(place).filter((name) => /\.[cm]?js$/.test(name))
  return names.sort().map((name) => path.join(place, name))
}

async function importPlugin(file: string): Promise<Plugin> {
  let found = (await import(pathToFileURL(path.resolve(file)).href)).default
  // a compiled ES module keeps its default one level deeper
  if (found?.default !== undefined) found = found.default
  const plugin = typeof found === 'function' ? new found() : found
  if (typeof plugin?.getName !== 'function') throw new TypeError(`${file}: its default export is no plugin: it has no getName`)
  return plugin
}
