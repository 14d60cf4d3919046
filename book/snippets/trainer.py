import transformers


class SharpTrainer(transformers.Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        sam = getattr(self.optimizer, "optimizer", self.optimizer)
        sam.first_step(zero_grad=True)
        super().training_step(model, inputs, num_items_in_batch)
        return (
            loss  # the Trainer's own optimizer.step() is the second step
        )


trainer = SharpTrainer(
    model,
    settings,  # transformers.TrainingArguments
    train_dataset=rows,
    optimizers=(optimizer, None),
    compute_loss_func=lambda outputs, targets, num_items_in_batch=None: (
        loss_of(outputs["logits"], targets)
    ),
)
trainer.train()
