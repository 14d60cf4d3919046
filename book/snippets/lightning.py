import lightning
import saddlebook as sb
import torch


class Sharp(lightning.LightningModule):
    def __init__(self, model, loss_of):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.loss_of = model, loss_of

    def training_step(self, batch, index):
        optimizer, (images, targets) = self.optimizers(), batch
        self.manual_backward(self.loss_of(self.model(images), targets))
        optimizer.first_step(zero_grad=True)
        self.manual_backward(self.loss_of(self.model(images), targets))
        optimizer.step()
        optimizer.zero_grad()

    def configure_optimizers(self):
        settings = {"rho": 0.05, "lr": 0.1, "momentum": 0.9}
        return sb.SAM(self.parameters(), torch.optim.SGD, **settings)
