"""The agents of Loremesh: coordinator, retriever, synthesizer, generator, knowledge."""
