/** Tokens and their lives. */

import assert from 'node:assert/strict'
import { test } from 'node:test'

import { Chains, LocalRegistry } from '../src/confs'
import type { Plugin } from '../src/plugins'

const plugin: Plugin = { getName: () => 'p', parseConf: (conf) => JSON.parse(conf) }
const plugins = new Map([['p', plugin]])

test('a token lives as long as the gateway uses it, and a little longer', async () => {
  let now = 1_000_000
  const registry = new LocalRegistry(10, () => now)
  const chains = new Chains(plugins, registry, () => now)
  const old = await chains.prepare('old', [['p', '{"a": 1}']])
  const renewed = await chains.prepare('renewed', [])
  assert.deepEqual(chains.known(old)?.steps[0].conf, { a: 1 })
  now += 11_000
  assert.ok(chains.known(old))
  assert.equal(await chains.prepare('renewed', []), renewed)
  now += 2_000
  assert.equal(chains.known(old), undefined)
  assert.equal(await chains.find(old), undefined)
  assert.ok(chains.known(renewed))
  assert.notEqual(await chains.prepare('old', [['p', '{"a": 1}']]), old)
})

test('one key with one configuration is one token', async () => {
  const chains = new Chains(plugins, new LocalRegistry(10))
  const first = await chains.prepare('k', [['p', '1']])
  assert.equal(await chains.prepare('k', [['p', '1']]), first)
  assert.notEqual(await chains.prepare('k', [['p', '2']]), first)
  assert.notEqual(await chains.prepare('', []), await chains.prepare('', []))
})

test('another process finds what this one has prepared', async () => {
  const registry = new LocalRegistry(10)
  const [one, two] = [new Chains(plugins, registry), new Chains(plugins, registry)]
  const token = await one.prepare('k', [['p', '5']])
  assert.equal(two.known(token), undefined)
  assert.equal((await two.find(token))?.steps[0].conf, 5)
  assert.ok(two.known(token))
})

test('what cannot be prepared', async () => {
  const chains = new Chains(plugins, new LocalRegistry(10))
  await assert.rejects(chains.prepare('k', [['q', '']]), /no plugin `q` is loaded; there are: p/)
  await assert.rejects(chains.prepare('k', [['p', '{']]), SyntaxError)
})
