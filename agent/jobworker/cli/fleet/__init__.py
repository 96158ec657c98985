"""Commands of worker-client on many hosts at once.

`sources` reads an inventory, `inventory` is what it says, `patterns` and `targets` choose hosts of it and find
their agents; `fanout` visits them, `actions` is what each command does there; `printer` merges what they tell, and
`outcome` is how it went. `command` puts these together, behind `ClientCommand.invoke`.
"""
